FROM a AS one
FROM b
WORKDIR /srv
ARG ID=modules
RUN --mount=type=cache,target=/root/.cache --mount=type=cache,id=$ID,target=cache,sharing=locked,uid=1,mode=0700,ro true
RUN --mount=target=/src --mount=from=one,source=/a/../b,dst=/c,rw --mount=type=bind,from=files,target=/files true
RUN --mount=type=tmpfs,target=/tmp,size=64m true
RUN --mount=type=secret,id=token --mount=type=secret,target=/x/key,required --mount=type=secret,id=env,env=TOKEN --mount=type=secret,src=s,dst=/s,env= true
RUN --mount=type=ssh --mount=type=ssh,id=other,target=/agent,required=true,mode=0600 true
RUN --network=none --security=insecure true
RUN --network=host '--mount=type=bind,"source=a,b",target=/x' -- --flag
