"""WHICH units stay: arrays in, arrays out; never what a unit stands for."""
