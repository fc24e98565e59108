FROM scratch
COPY secret.txt other.txt /
ADD ./secret.txt /
COPY . /
COPY --from=0 secret.txt /
