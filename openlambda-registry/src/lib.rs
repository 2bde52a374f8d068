//! openlambda-registry
