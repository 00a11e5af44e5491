//! Integer operations and the one rounding rule.
