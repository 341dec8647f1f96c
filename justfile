# Run these by ./justw, which installs what they need. Arguments are passed to the command of a recipe.

set positional-arguments := true

# For all supported platforms and Python versions: resolved for the lowest version, universally.
compile := "uv pip compile pyproject.toml --quiet --universal --python-version 3.11 " + \
    "--generate-hashes --custom-compile-command './justw lock'"

_list:
    @just --list --unsorted

# Serve on 127.0.0.1:8080, with an embedded PostgreSQL by default
serve *args: generate
    @exec listings serve "$@"

# Run the tests; arguments as for pytest: test -k seed
test *args: generate
    @if command -v npm && { command -v chromium || command -v google-chrome; }; then \
        uv pip install --quiet --no-deps --require-hashes --requirement requirements/browser.txt; \
    fi >/dev/null
    @exec pytest --durations 10 --numprocesses auto --dist worksteal --ignore tests/faults --ignore tests/fuzz "$@"

# Inject faults under load: minutes, or about one with LISTINGS_FAULTS=short
faults *args: generate
    @LISTINGS_FAULTS="${LISTINGS_FAULTS:-full}" exec pytest tests/faults "$@"

# Send hostile requests: minutes, or seconds with LISTINGS_FUZZ=short
fuzz *args: generate
    @LISTINGS_FUZZ="${LISTINGS_FUZZ:-full}" exec pytest tests/fuzz "$@"

# Run the conformance suites of Connect, gRPC, gRPC-Web and HTTP/2; needs Go
conformance *args: generate
    @exec python -m tests.conformance "$@"

# Run the tests that are marked as taking minutes
soak *args: generate
    @exec pytest -m soak "$@"

# Check style, types, import rules, and the protos against the accepted contract
check: generate
    ruff check
    ruff format --check
    mypy .
    @uv pip install --quiet --target .venv/check --no-deps --require-hashes \
        --requirement requirements/check.txt
    PYTHONPATH=.venv/check .venv/check/bin/lint-imports --no-logo
    buf format --diff --exit-code proto
    python -m proto.contract check
    uv pip check

# Format code and protos
fmt:
    ruff check --fix-only
    ruff format
    buf format --write proto

# Generate server/gen from the protos, unless it is up to date
generate:
    @python -m proto.generate

# Accept the protos as the contract; --force if it breaks clients
contract *args:
    @python -m proto.contract accept "$@"

# Change the database's schema: migrate up, down VERSION, status
migrate *args: generate
    @exec listings migrate "$@"

# Add demo orders to the database: seed --orders 1000
seed *args: generate
    @exec listings seed "$@"

# Measure the service beside its peers; --quick for some minutes
bench *args: generate
    @uv pip install --quiet --no-deps --require-hashes --requirement requirements/bench.txt
    @exec python -m benchmarks "$@"

# List the packages of the service with their licences
licences *args: generate
    @exec pip-licenses --from mixed --with-urls --order license \
        --packages $(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/\1/p' requirements/service.txt) "$@"

# Build the container image "listings", with podman or docker
image *args:
    @for engine in podman docker; do \
        if command -v "$engine" >/dev/null; then \
            exec "$engine" build --file Containerfile --tag listings "$@" .; \
        fi; \
    done; \
    echo "This needs podman or docker, and neither is on the PATH." >&2; exit 1

# Write the lock files; --upgrade for the newest packages
lock *args:
    {{ compile }} --extra otel --output-file requirements/service.txt "$@"
    {{ compile }} --extra embedded --extra otel --group dev --constraint requirements/service.txt \
        --output-file requirements/dev.txt "$@"
    # Without what dev.txt contains.
    for group in check browser bench; do \
        {{ compile }} --group "$group" --constraint requirements/dev.txt \
            $(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/--no-emit-package \1/p' requirements/dev.txt) \
            --output-file "requirements/$group.txt" "$@" || exit; \
    done
