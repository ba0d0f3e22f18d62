"""Compare the gradients of estimators with the exact gradient."""
