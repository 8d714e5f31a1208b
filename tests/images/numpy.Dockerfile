# Python with something worth importing ahead: scripts/test builds it as isol8-test:python-numpy.
FROM isol8:python
LABEL isol8.test=numpy
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-numpy \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
