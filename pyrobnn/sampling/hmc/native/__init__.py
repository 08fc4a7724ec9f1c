"""Potentials as C++ loops: what operators compute, the loops of a graph, the leapfrogs around them."""
