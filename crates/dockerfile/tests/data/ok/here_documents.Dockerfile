FROM scratch
ARG NAME=me
RUN <<EOF
  echo $NAME
# not a comment
EOF
RUN <<-'EOF' cat > /x
	tabs	stay
	EOF
RUN <<-EOF
	#!/bin/cat
	text
EOF
RUN cat <<A <<"B" && \
  true
one
A
two
B
COPY <<one <<-'two' three /dest/
name "$NAME" \$NAME
one
	name $NAME
two
ADD --chmod=u=rw,go=r --chown=1:$NAME <<EOF /file
EOF
RUN ["cat", "<<EOF"]
