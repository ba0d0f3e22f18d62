"""All that the package asks of private names of Pyro and torch: a new release is read here first."""
