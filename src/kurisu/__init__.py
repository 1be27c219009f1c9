"""Kurisu."""
