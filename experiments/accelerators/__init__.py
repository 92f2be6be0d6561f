"""Memory and operations of configs on accelerators, by compiling for them on a machine without any."""
