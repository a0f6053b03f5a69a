# Varnish as an HTTP cache: what it ships with, and what an operator would add for RFC 9111.
vcl 4.1;
import std;
backend default { .host = "127.0.0.1"; .port = "@ORIGIN@"; }
sub vcl_recv {
    if (req.method != "GET" && req.method != "HEAD") { return (pass); }
    if (req.http.Cache-Control ~ "(?i)no-cache") { set req.hash_always_miss = true; }
    if (req.http.Cache-Control ~ "(?i)no-store") { return (pass); }
}
sub vcl_backend_response {
    set beresp.http.X-Url = bereq.url;
    set beresp.keep = 1h;
    if (beresp.http.Cache-Control !~ "(?i)stale-while-revalidate") { set beresp.grace = 0s; }
    if (beresp.http.Cache-Control ~ "(?i)no-cache") { set beresp.ttl = 0s; }
    if (beresp.http.Vary ~ "\*") { set beresp.uncacheable = true; }
}
sub vcl_deliver {
    # §4.4: what an unsafe method changed is not served from the cache any more.
    if (req.method != "GET" && req.method != "HEAD" && req.method != "OPTIONS" && req.method != "TRACE" && resp.status < 400) {
        ban("obj.http.X-Url == " + req.url);
    }
    unset resp.http.X-Url;
}
