"""Conformance of the stack: what stands between a socket and the method of a service.

    ./justw conformance

Two suites run against ``serve``, a process with a service of the Connect conformance suite in place
of this one's. It has the same HTTP server, TLS, mounts, middleware, codecs, interceptors and gRPC
fast path.

- connectconformance: the protocols Connect, gRPC and gRPC-Web.
  https://github.com/connectrpc/conformance
- h2spec: HTTP/2 and HPACK. https://github.com/summerwind/h2spec

``go.mod`` pins both, and the Go that they need. Their source has the protos of the service, from
which ``generated`` makes the package ``gen``.
"""
