"""Methods that papers add to a VDM, one file each; vdm/diffusion does not depend on them."""
