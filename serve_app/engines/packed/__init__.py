"""BERT-like encoders without padding: texts end to end, attention within each, pooling by segment.

layout.py     token ids of a batch as one int32 row that a GPU reads with one copy   (numpy)
attention.py  attention over texts of different lengths: flash kernels, or a reference
encoder.py    the layers, from a transformers model's own weights, with query, key and value as one
pooling.py    from token states to one vector a text
staging.py    pinned buffers that batches go to the GPU through, two at a time
graphs.py     CUDA graphs for small batches, by shape bucket
engine.py     the engine
"""
