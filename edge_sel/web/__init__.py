"""Pages and services on the device: labelling, and a model that is served. Nothing is fetched from elsewhere."""
