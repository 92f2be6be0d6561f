"""Methods that a paper adds to a VDM, one file each; vdm/diffusion does not depend on them."""
