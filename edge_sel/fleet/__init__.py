"""Many devices, one pack: what each sends of its images, and how a server merges it. Files alone, no network."""
