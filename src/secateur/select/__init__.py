"""Which units stay within a budget. Arrays in, arrays out; this package never knows what a unit stands for."""
