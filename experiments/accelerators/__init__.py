"""Memory use and operation counts of configs on accelerators, found by compiling for them on any machine."""
