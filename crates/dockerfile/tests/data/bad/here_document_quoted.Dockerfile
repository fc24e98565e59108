FROM scratch
RUN cat <<"A B"; true
A B
