"""unCLIP's pipelines: a prior from texts to pictures' vectors, a decoder, super-resolution."""
