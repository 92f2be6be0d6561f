"""What a paper adds to a VDM, one file each; nothing in vdm/diffusion knows of them."""
