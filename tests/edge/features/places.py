"""Where features may be kept: megabytes of memory and of disk for them."""

PLACES = {"memory": (64, 0), "file": (0, 64), "nowhere": (0, 0)}
