"""Codecs: from pictures, sound, frames to what a network denoises, and back. One file each."""
