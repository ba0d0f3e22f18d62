"""All uses of private names of Pyro and torch. When a new release breaks something, look here first."""
