//! openlambda-lb
