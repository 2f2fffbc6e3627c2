"""Captioned clips of a player in the free levels of Freedoom."""
