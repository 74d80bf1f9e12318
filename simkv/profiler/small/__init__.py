"""The small model: shape, structured initialisation, training, evaluation, key-channel outliers, and its loader."""
