"""The loop of stochastic gradient MCMC: batches, gradients, noise, stored draws."""
