"""Gradients of estimators held against the exact one."""
