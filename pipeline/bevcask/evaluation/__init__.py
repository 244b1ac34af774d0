"""Evaluation: the official nuScenes detection metrics."""
