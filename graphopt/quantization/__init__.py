"""Number formats, target profiles, and which nodes run as integer kernels: numpy and graphs only."""
