"""Reports as HTML pages: one file each, with everything in it; nothing is loaded from anywhere."""
