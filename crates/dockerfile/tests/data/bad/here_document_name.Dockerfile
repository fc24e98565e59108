FROM a
COPY <<../x /y
../x
