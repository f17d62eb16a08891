// Answers the kubelet's question whether a CSI driver is alive by the driver's Probe. It stands in for the sidecar
// livenessprobe, which is not to be had from the Go module proxy here, and takes that one's flags.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func main() {
	address := flag.String("csi-address", "/run/csi/socket", "the driver's socket in this container")
	port := flag.Int("health-port", 9808, "where /healthz answers, on every address of the pod")
	endpoint := flag.String("http-endpoint", "", "where /healthz answers, in place of --health-port")
	timeout := flag.Duration("probe-timeout", time.Second, "how long a Probe may take")
	flag.Int("v", 0, "taken and not used: there is little to log")
	flag.Parse()
	if *endpoint == "" {
		*endpoint = fmt.Sprintf(":%d", *port)
	}
	connection, err := grpc.NewClient("unix:"+*address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	driver := csi.NewIdentityClient(connection)
	http.HandleFunc("/healthz", func(answer http.ResponseWriter, request *http.Request) {
		ctx, cancel := context.WithTimeout(request.Context(), *timeout)
		defer cancel()
		probe, err := driver.Probe(ctx, &csi.ProbeRequest{})
		switch {
		case err != nil:
			http.Error(answer, err.Error(), http.StatusInternalServerError)
		case probe.Ready != nil && !probe.Ready.Value:
			http.Error(answer, "the driver says that it is not ready", http.StatusInternalServerError)
		default:
			answer.Write([]byte("ok"))
		}
	})
	log.Fatal(http.ListenAndServe(*endpoint, nil))
}
