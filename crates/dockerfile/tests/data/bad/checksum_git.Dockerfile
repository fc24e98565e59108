FROM a
ADD --checksum=sha256:00 https://example.com/x.git /
