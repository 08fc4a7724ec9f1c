"""The machinery of HMC: the recorded potential, leapfrog steps, adaptation."""
