// The provider terrahalt/trial: in each operation it does, step by step, what a test has written into
// its configuration, good or bad. What it makes lies in the cloud of tests/cloud.py, which also sees
// each operation end, whatever ends it. Built by tests/providers.py; it is no part of the product.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/hashicorp/terraform-plugin-framework/providerserver"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == deafWord {
		beDeaf()
	}
	address := "registry.terraform.io/terrahalt/trial"
	if err := providerserver.Serve(context.Background(), newProvider, providerserver.ServeOpts{Address: address}); err != nil {
		log.Fatal(fmt.Errorf("the provider can't be served: %w", err))
	}
}
