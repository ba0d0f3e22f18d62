"""A loss and its gradients, recorded once as a graph of tensor operations."""
