"""Other forms of a result: generated modelling files, DeciLM, packed weights, integers, ONNX."""
