FROM scratch
WORKDIR /work
COPY a b/c ../../etc/passwd dest/
COPY . .
COPY . /
ADD archive.tar /unpacked
COPY ["dir/*", "with blank", "/d/"]
