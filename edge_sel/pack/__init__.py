"""The artifact that a server exports and a device trains: manifest, weights, graphs."""
