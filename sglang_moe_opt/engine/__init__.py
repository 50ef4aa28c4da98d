"""Thin SGLang glue: each module hooks one place of the engine; the maths lives in the pure packages."""
