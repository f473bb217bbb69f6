"""The Open Inference Protocol, version 2 (KServe's and Triton's), over the same models.

Its clients meet the same keys, limits, deadlines and executors as our own; only the words
differ. Reading order: `addresses`, `datatypes`, `requests`, `arguments`, `outputs`,
`metadata`, `form`, `routes`.

Sources: the protocol, https://github.com/kserve/open-inference-protocol (specification/protocol/
inference_rest.md); Triton's extensions for binary data, parameters and scheduling,
https://github.com/triton-inference-server/server (docs/protocol).
"""
