"""From a network to a Pyro model: priors, likelihoods, sites and their layout in the flat vector."""
