//! openlambda-sandbox
