"""Rounds over a network with Flower: stock processes, a door that shows devices the fleet's API only, our own code."""
