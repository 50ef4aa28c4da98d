"""What serving costs: bytes and floating-point operations of a step, and the time that a machine needs for them.

roofline.py                  the least that a step must read and compute, for benchmarks
hardware, model, parallel    what runs it: presets and files
curve, routing, work         what is compared, the experts that a batch touches, bytes and operations of a step
parameters, step, serving    how well an engine does: seconds of a step, and tokens per second by concurrency
measurements, fit            parameters from measured throughput; fitted/ holds those that come with the package
achieved                     what a measured step touched, how fast, and what bound it: for reports of load tests
predict, plots               tables, inverse questions, pictures
validation, validate         predictions beside measurements
"""
