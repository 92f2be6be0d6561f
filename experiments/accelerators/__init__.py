"""What configs need and do on accelerators, by compiling for them on a machine that has none."""
