FROM scratch
MAINTAINER somebody
ENV old style
LABEL also old
ENV API_KEY=1 PUBLIC_KEY=2 token=3 tokens=4
ARG password
ARG PASSWORD_FILE
EXPOSE 80/TCP 127.0.0.1:81:81 82
WORKDIR here
WORKDIR there
CMD one
CMD ["two"]
ENTRYPOINT three
HEALTHCHECK NONE
healthcheck CMD four
SHELL ["/bin/bash", "-c"]
ENTRYPOINT five
RUN a \

  b
