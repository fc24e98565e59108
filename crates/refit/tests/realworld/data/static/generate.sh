# Makes a page of HTML of each text: generate.sh FROM TO
for text in "$1"/*.txt; do
    name=$(basename "$text" .txt)
    printf '<!doctype html>\n<title>%s</title>\n<p>%s</p>\n' "$name" "$(cat "$text")" >"$2/$name.html"
done
